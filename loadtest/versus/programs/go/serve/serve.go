// Package serve is what the small servers of this module have in common: a free port, one HTTP server for clients and
// publications, and the line that describes the peer to whoever started it.
package serve

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"runtime"
	"runtime/debug"
	"sync"
)

const (
	bodyBytesMax = 1 << 20
	sayBytes     = 60000
)

// Peer is one server of the comparison.
type Peer struct {
	// Module is the path of the library that is compared.
	Module string
	// Settings says what differs from the library's defaults.
	Settings string
	// Upgrade takes a client's request, and has answered it when it returns.
	Upgrade http.HandlerFunc
	// Publish sends one text to everybody.
	Publish func(body []byte)
}

// Run serves until the process ends.
func (p Peer) Run() {
	// Go takes the accept queue's length from the system.
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /publish", func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, bodyBytesMax))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		p.Publish(body)
		w.WriteHeader(http.StatusAccepted)
	})
	mux.HandleFunc("/", p.Upgrade)

	line, err := json.Marshal(map[string]any{
		"version":  p.version(),
		"settings": p.Settings,
		"protocol": "raw",
		"target":   fmt.Sprintf("ws://%s/", listener.Addr()),
		"publish":  map[string]string{"url": fmt.Sprintf("http://%s/publish", listener.Addr()), "body": "{mark}"},
		"say":      map[string]any{"texts": []string{"{pad}"}, "reply": "any", "bytes": sayBytes},
		"pids":     []int{os.Getpid()},
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(line))
	log.Fatal(http.Serve(listener, mux))
}

func (p Peer) version() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, module := range info.Deps {
			if module.Path == p.Module {
				return fmt.Sprintf("%s %s on %s", module.Path, module.Version, runtime.Version())
			}
		}
	}
	return p.Module + " on " + runtime.Version()
}

// Clients are all that are connected.
type Clients[C comparable] struct {
	mutex sync.RWMutex
	all   map[C]struct{}
}

// Add takes a client in.
func (c *Clients[C]) Add(client C) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if c.all == nil {
		c.all = make(map[C]struct{})
	}
	c.all[client] = struct{}{}
}

// Remove forgets a client.
func (c *Clients[C]) Remove(client C) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	delete(c.all, client)
}

// Each calls send for every client. Nobody comes or goes meanwhile.
func (c *Clients[C]) Each(send func(C)) {
	c.mutex.RLock()
	defer c.mutex.RUnlock()
	for client := range c.all {
		send(client)
	}
}

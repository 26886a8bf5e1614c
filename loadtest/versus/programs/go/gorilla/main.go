// gorilla/websocket as a server: echoes every message, and sends what is posted to /publish to everybody.
package main

import (
	"log"
	"net/http"
	"sync"
	"time"

	"cableway-versus/serve"

	"github.com/gorilla/websocket"
)

// How long a client may block a writer, as in the library's chat example.
const writeWait = 10 * time.Second

// The library allows one writer at a time: the client's own goroutine or the publisher.
type client struct {
	socket  *websocket.Conn
	writing sync.Mutex
}

func (c *client) write(send func() error) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	if err := c.socket.SetWriteDeadline(time.Now().Add(writeWait)); err != nil {
		return err
	}
	return send()
}

var (
	clients serve.Clients[*client]
	// What the library's documentation recommends for many connections that write rarely.
	upgrader = websocket.Upgrader{ReadBufferSize: 1024, WriteBufferSize: 1024, WriteBufferPool: &sync.Pool{}}
)

func upgrade(w http.ResponseWriter, r *http.Request) {
	socket, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	// In a goroutine of its own, so that what the HTTP server holds for the request is free.
	go (&client{socket: socket}).echo()
}

func (c *client) echo() {
	clients.Add(c)
	defer c.socket.Close()
	defer clients.Remove(c)
	for {
		kind, message, err := c.socket.ReadMessage()
		if err != nil {
			return
		}
		if c.write(func() error { return c.socket.WriteMessage(kind, message) }) != nil {
			return
		}
	}
}

func publish(body []byte) {
	message, err := websocket.NewPreparedMessage(websocket.TextMessage, body)
	if err != nil {
		log.Print(err)
		return
	}
	clients.Each(func(c *client) {
		// A client that cannot be written to is found out by its own reader.
		if c.write(func() error { return c.socket.WritePreparedMessage(message) }) != nil {
			c.socket.Close()
		}
	})
}

func main() {
	serve.Peer{
		Module:   "github.com/gorilla/websocket",
		Settings: "buffers of 1 KiB, the one for writing from a pool; prepared messages; compression off; a goroutine each",
		Upgrade:  upgrade,
		Publish:  publish,
	}.Run()
}

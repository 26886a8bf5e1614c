// gws as a server: echoes every message, and sends what is posted to /publish to everybody.
package main

import (
	"net/http"

	"cableway-versus/serve"

	"github.com/lxzan/gws"
)

var clients serve.Clients[*gws.Conn]

type handler struct {
	gws.BuiltinEventHandler
}

func (handler) OnOpen(socket *gws.Conn) {
	clients.Add(socket)
}

func (handler) OnClose(socket *gws.Conn, _ error) {
	clients.Remove(socket)
}

func (handler) OnPing(socket *gws.Conn, payload []byte) {
	_ = socket.WritePong(payload)
}

func (handler) OnMessage(socket *gws.Conn, message *gws.Message) {
	defer message.Close()
	_ = socket.WriteMessage(message.Opcode, message.Bytes())
}

func main() {
	upgrader := gws.NewUpgrader(handler{}, &gws.ServerOption{CheckUtf8Enabled: true, Recovery: gws.Recovery})
	serve.Peer{
		Module:   "github.com/lxzan/gws",
		Settings: "UTF-8 check and recovery on, as its examples have it; Broadcaster; compression off; a goroutine each",
		Upgrade: func(w http.ResponseWriter, r *http.Request) {
			if socket, err := upgrader.Upgrade(w, r); err == nil {
				// In a goroutine of its own, as its documentation says, so that what the HTTP server holds for the
				// request is free.
				go socket.ReadLoop()
			}
		},
		Publish: func(body []byte) {
			frame := gws.NewBroadcaster(gws.OpcodeText, body)
			clients.Each(func(socket *gws.Conn) { _ = frame.Broadcast(socket) })
			_ = frame.Close()
		},
	}.Run()
}

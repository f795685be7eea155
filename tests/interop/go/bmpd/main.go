// A monitoring station that is not ours: reads BMP with GoBGP's decoder and writes one line of JSON for each message.
//
// usage: bmpd ADDRESS. It serves one connection after the other. A file named by BMPD_DEAF that exists keeps it from
// reading: a station that does not.
package main

import (
	"bufio"
	"encoding/json"
	"io"
	"net"
	"os"
	"time"

	"github.com/osrg/gobgp/v3/pkg/packet/bgp"
	"github.com/osrg/gobgp/v3/pkg/packet/bmp"
)

type line struct {
	Connection int      `json:"connection"`
	Kind       string   `json:"kind"`
	Peer       string   `json:"peer,omitempty"`
	PeerType   uint8    `json:"peerType"`
	Asn        uint32   `json:"asn,omitempty"`
	RouterID   string   `json:"routerId,omitempty"`
	Post       bool     `json:"post"`
	Announced  []string `json:"announced,omitempty"`
	Withdrawn  []string `json:"withdrawn,omitempty"`
	NextHop    string   `json:"nextHop,omitempty"`
	End        bool     `json:"end,omitempty"`
	Reason     uint8    `json:"reason,omitempty"`
	Local      string   `json:"local,omitempty"`
	Ports      []uint16 `json:"ports,omitempty"`
	Opens      []string `json:"opens,omitempty"`
	Texts      []string `json:"texts,omitempty"`
	Stats      []uint16 `json:"stats,omitempty"`
	Error      string   `json:"error,omitempty"`
}

var out = json.NewEncoder(os.Stdout)

func say(one line) {
	if err := out.Encode(one); err != nil {
		os.Exit(1)
	}
}

func main() {
	listener, err := net.Listen("tcp", os.Args[1])
	if err != nil {
		panic(err)
	}
	say(line{Kind: "listening"})
	for number := 1; ; number++ {
		conn, err := listener.Accept()
		if err != nil {
			panic(err)
		}
		serve(conn, number)
	}
}

func serve(conn net.Conn, number int) {
	defer conn.Close()
	say(line{Connection: number, Kind: "connected"})
	scanner := bufio.NewScanner(conn)
	scanner.Buffer(make([]byte, 1<<20), 1<<20)
	scanner.Split(bmp.SplitBMP)
	for {
		deaf := os.Getenv("BMPD_DEAF")
		for deaf != "" {
			if _, err := os.Stat(deaf); err != nil {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		if !scanner.Scan() {
			break
		}
		message, err := bmp.ParseBMPMessage(scanner.Bytes())
		if err != nil {
			say(line{Connection: number, Kind: "malformed", Error: err.Error()})
			return
		}
		say(read(message, number))
	}
	text := io.EOF.Error()
	if err := scanner.Err(); err != nil {
		text = err.Error()
	}
	say(line{Connection: number, Kind: "closed", Error: text})
}

func read(message *bmp.BMPMessage, number int) line {
	one := line{Connection: number}
	kind := message.Header.Type
	if kind != bmp.BMP_MSG_INITIATION && kind != bmp.BMP_MSG_TERMINATION {
		peer := message.PeerHeader
		one.Peer, one.PeerType, one.Asn = peer.PeerAddress.String(), peer.PeerType, peer.PeerAS
		one.RouterID, one.Post = peer.PeerBGPID.String(), peer.IsPostPolicy()
	}
	switch body := message.Body.(type) {
	case *bmp.BMPInitiation:
		one.Kind = "initiation"
		for _, info := range body.Info {
			if text, ok := info.(*bmp.BMPInfoTLVString); ok {
				one.Texts = append(one.Texts, text.Value)
			}
		}
	case *bmp.BMPTermination:
		one.Kind = "termination"
	case *bmp.BMPPeerUpNotification:
		one.Kind = "up"
		one.Local = body.LocalAddress.String()
		one.Ports = []uint16{body.LocalPort, body.RemotePort}
		for _, open := range []*bgp.BGPMessage{body.SentOpenMsg, body.ReceivedOpenMsg} {
			one.Opens = append(one.Opens, open.Body.(*bgp.BGPOpen).ID.String())
		}
	case *bmp.BMPPeerDownNotification:
		one.Kind, one.Reason = "down", body.Reason
	case *bmp.BMPStatisticsReport:
		one.Kind = "statistics"
		for _, stat := range body.Stats {
			switch stat := stat.(type) {
			case *bmp.BMPStatsTLV32:
				one.Stats = append(one.Stats, stat.Type)
			case *bmp.BMPStatsTLV64:
				one.Stats = append(one.Stats, stat.Type)
			case *bmp.BMPStatsTLVPerAfiSafi64:
				one.Stats = append(one.Stats, stat.Type)
			}
		}
	case *bmp.BMPRouteMonitoring:
		one.Kind = "route"
		routes(body.BGPUpdate.Body.(*bgp.BGPUpdate), &one)
	default:
		one.Kind, one.Error = "malformed", "a message that GoBGP does not know"
	}
	return one
}

func routes(update *bgp.BGPUpdate, one *line) {
	one.End, _ = update.IsEndOfRib()
	for _, nlri := range update.NLRI {
		one.Announced = append(one.Announced, nlri.String())
	}
	for _, nlri := range update.WithdrawnRoutes {
		one.Withdrawn = append(one.Withdrawn, nlri.String())
	}
	for _, attribute := range update.PathAttributes {
		switch attribute := attribute.(type) {
		case *bgp.PathAttributeNextHop:
			one.NextHop = attribute.Value.String()
		case *bgp.PathAttributeMpReachNLRI:
			one.NextHop = attribute.Nexthop.String()
			for _, nlri := range attribute.Value {
				one.Announced = append(one.Announced, nlri.String())
			}
		case *bgp.PathAttributeMpUnreachNLRI:
			for _, nlri := range attribute.Value {
				one.Withdrawn = append(one.Withdrawn, nlri.String())
			}
		}
	}
}

// Command libcni is a container runtime made of the reference library of CNI and nothing else: it reads one question as
// JSON from standard input, asks the plugins of the network, and writes one answer as JSON. The library keeps its cache
// of results where runtimes keep it.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
)

const (
	confDir  = "/etc/cni/net.d"
	binDir   = "/opt/cni/bin"
	cacheDir = "/var/lib/cni"
)

// question is what is to be done, and with what.
type question struct {
	Verb    string `json:"verb"`
	Network string `json:"network"`
	// Conflist is used instead of the one that is installed.
	Conflist       json.RawMessage      `json:"conflist"`
	ContainerID    string               `json:"containerID"`
	NetNS          string               `json:"netns"`
	IfName         string               `json:"ifname"`
	Args           [][2]string          `json:"args"`
	CapabilityArgs map[string]any       `json:"capabilityArgs"`
	Valid          []types.GCAttachment `json:"valid"`
}

// answer has a result, or an error with the code that the plugin gave.
type answer struct {
	Result   any      `json:"result,omitempty"`
	Version  string   `json:"version,omitempty"`
	Versions []string `json:"versions,omitempty"`
	Cached   []string `json:"cached,omitempty"`
	Code     uint     `json:"code,omitempty"`
	Message  string   `json:"message,omitempty"`
}

func main() {
	var asked question
	if err := json.NewDecoder(os.Stdin).Decode(&asked); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	given, err := ask(context.Background(), asked)
	if err != nil {
		given.Message = err.Error()
		given.Code = 999
		var plugin *types.Error
		if errors.As(err, &plugin) {
			given.Code = plugin.Code
		}
	}
	if err := json.NewEncoder(os.Stdout).Encode(given); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
}

func ask(ctx context.Context, asked question) (answer, error) {
	list, err := network(asked)
	if err != nil {
		return answer{}, err
	}
	cni := libcni.NewCNIConfigWithCacheDir([]string{binDir}, cacheDir, nil)
	attachment := &libcni.RuntimeConf{
		ContainerID:    asked.ContainerID,
		NetNS:          asked.NetNS,
		IfName:         asked.IfName,
		Args:           asked.Args,
		CapabilityArgs: asked.CapabilityArgs,
	}
	given := answer{Version: list.CNIVersion}
	switch asked.Verb {
	case "ADD":
		given.Result, err = result(cni.AddNetworkList(ctx, list, attachment))
	case "CHECK":
		err = cni.CheckNetworkList(ctx, list, attachment)
	case "DEL":
		err = cni.DelNetworkList(ctx, list, attachment)
	case "GC":
		err = cni.GCNetworkList(ctx, list, &libcni.GCArgs{ValidAttachments: asked.Valid})
	case "STATUS":
		err = cni.GetStatusNetworkList(ctx, list)
	case "VERSION":
		_, err = cni.ValidateNetworkList(ctx, list)
		if err == nil {
			for _, plugin := range list.Plugins {
				var info interface{ SupportedVersions() []string }
				if info, err = cni.GetVersionInfo(ctx, plugin.Network.Type); err != nil {
					break
				}
				given.Versions = append(given.Versions, info.SupportedVersions()...)
			}
		}
	case "CACHED":
		given.Result, err = result(cni.GetNetworkListCachedResult(list, attachment))
		attachments, cacheErr := cni.GetCachedAttachments("")
		err = errors.Join(err, cacheErr)
		for _, one := range attachments {
			given.Cached = append(given.Cached, one.Network+"/"+one.ContainerID+"/"+one.IfName)
		}
	default:
		err = fmt.Errorf("verb %q is not known", asked.Verb)
	}
	return given, err
}

func network(asked question) (*libcni.NetworkConfigList, error) {
	if len(asked.Conflist) > 0 {
		return libcni.NetworkConfFromBytes(asked.Conflist)
	}
	return libcni.LoadNetworkConf(confDir, asked.Network)
}

// result keeps a nil of the library from becoming an interface that is not nil.
func result(from types.Result, err error) (any, error) {
	if from == nil {
		return nil, err
	}
	return from, err
}

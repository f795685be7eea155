// Command cri asks a container runtime over its CRI socket: what it says of its network, and pods made and ended as a
// kubelet makes and ends them. It writes one answer as JSON.
//
//	cri SOCKET status
//	cri SOCKET run NAMESPACE NAME UID CGROUP
//	cri SOCKET pod ID
//	cri SOCKET stop ID
//	cri SOCKET remove ID
//	cri FILE image BUSYBOX
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func main() {
	given, err := ask(os.Args[1:])
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(given)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func ask(words []string) (any, error) {
	if len(words) < 2 {
		return nil, fmt.Errorf("cri SOCKET VERB expected, %q found", words)
	}
	if words[1] == "image" && len(words) == 3 {
		return pause, writeImage(words[0], words[2])
	}
	connection, err := grpc.NewClient("unix://"+words[0], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	runtime := cri.NewRuntimeServiceClient(connection)
	verb, rest := words[1], words[2:]
	switch {
	case verb == "status" && len(rest) == 0:
		answer, err := runtime.Status(ctx, &cri.StatusRequest{})
		if err != nil {
			return nil, err
		}
		conditions := map[string]any{}
		for _, one := range answer.Status.Conditions {
			conditions[one.Type] = map[string]any{"status": one.Status, "reason": one.Reason, "message": one.Message}
		}
		return conditions, nil
	case verb == "run" && len(rest) == 4:
		config := sandbox(rest[0], rest[1], rest[2], rest[3])
		return runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config})
	case verb == "pod" && len(rest) == 1:
		answer, err := runtime.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: rest[0]})
		if err != nil {
			return nil, err
		}
		addresses := []string{answer.Status.Network.Ip}
		for _, more := range answer.Status.Network.AdditionalIps {
			addresses = append(addresses, more.Ip)
		}
		return map[string]any{"state": answer.Status.State.String(), "addresses": addresses}, nil
	case verb == "stop" && len(rest) == 1:
		return runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: rest[0]})
	case verb == "remove" && len(rest) == 1:
		return runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: rest[0]})
	}
	return nil, fmt.Errorf("%q is not understood", words)
}

// sandbox is a pod as a kubelet describes it, as far as a network is concerned.
func sandbox(namespace, name, uid, cgroup string) *cri.PodSandboxConfig {
	return &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Namespace: namespace, Name: name, Uid: uid},
		Hostname: name,
		Linux:    &cri.LinuxPodSandboxConfig{CgroupParent: cgroup},
	}
}

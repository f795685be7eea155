// Command flannel is flannel's daemon of flannel's own packages: subnet manager on etcd, backends vxlan and host-gw. Its
// own main does not build (a cloud vendor's module is gone), so this one does what that one does in the same order, but
// for masquerade and firewall rules, which no pod of a lab needs.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/flannel-io/flannel/pkg/backend"
	_ "github.com/flannel-io/flannel/pkg/backend/hostgw"
	_ "github.com/flannel-io/flannel/pkg/backend/vxlan"
	"github.com/flannel-io/flannel/pkg/ip"
	"github.com/flannel-io/flannel/pkg/ipmatch"
	"github.com/flannel-io/flannel/pkg/subnet"
	"github.com/flannel-io/flannel/pkg/subnet/etcd"
)

func main() {
	endpoints := flag.String("etcd-endpoints", "http://127.0.0.1:2379", "etcd endpoints, separated by commas")
	prefix := flag.String("etcd-prefix", "/coreos.com/network", "etcd prefix")
	iface := flag.String("iface", "eth0", "interface of the underlay")
	subnetFile := flag.String("subnet-file", "/run/flannel/subnet.env", "where the subnet is told to the CNI plugin")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, *endpoints, *prefix, *iface, *subnetFile); err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, endpoints, prefix, iface, subnetFile string) error {
	etcdConfig := &etcd.EtcdConfig{Endpoints: strings.Split(endpoints, ","), Prefix: prefix}
	manager, err := etcd.NewLocalManager(ctx, etcdConfig, ip.IP4Net{}, ip.IP6Net{}, 60)
	if err != nil {
		return fmt.Errorf("subnet manager: %w", err)
	}
	config, err := networkConfig(ctx, manager)
	if err != nil {
		return err
	}
	stack, err := ipmatch.GetIPFamily(config.EnableIPv4, config.EnableIPv6)
	if err != nil {
		return fmt.Errorf("families: %w", err)
	}
	external, err := ipmatch.LookupExtIface(iface, "", "", stack, ipmatch.PublicIPOpts{})
	if err != nil {
		return fmt.Errorf("interface %s: %w", iface, err)
	}
	chosen, err := backend.NewManager(ctx, manager, external).GetBackend(config.BackendType)
	if err != nil {
		return fmt.Errorf("backend %s: %w", config.BackendType, err)
	}
	var running sync.WaitGroup
	network, err := chosen.RegisterNetwork(ctx, &running, config)
	if err != nil {
		return fmt.Errorf("register: %w", err)
	}
	lease := network.Lease()
	err = manager.HandleSubnetFile(subnetFile, config, false, lease.Subnet, lease.IPv6Subnet, network.MTU())
	if err != nil {
		return fmt.Errorf("%s: %w", subnetFile, err)
	}
	running.Add(1)
	go func() {
		network.Run(ctx)
		running.Done()
	}()
	err = manager.CompleteLease(ctx, lease, &running)
	if ctx.Err() == nil && err != nil {
		return fmt.Errorf("lease: %w", err)
	}
	running.Wait()
	return nil
}

// networkConfig waits for the operator to write it, as flannel does.
func networkConfig(ctx context.Context, manager subnet.Manager) (*subnet.Config, error) {
	for {
		config, err := manager.GetNetworkConfig(ctx)
		if err == nil {
			return config, nil
		}
		fmt.Fprintln(os.Stderr, "network configuration:", err)
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(time.Second):
		}
	}
}

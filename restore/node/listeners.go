package node

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
)

// Listener is a TCP socket that waits for connections.
type Listener struct {
	Address netip.AddrPort
	Process Process // PID 0: whose it is can't be seen, which takes root
}

func (l Listener) String() string {
	if l.Process.PID == 0 {
		return fmt.Sprintf("%s (of a process that can't be seen)", l.Address)
	}
	return fmt.Sprintf("%s (%s)", l.Address, l.Process)
}

// socket is a listening one, as in /proc/net/tcp.
type socket struct {
	address netip.AddrPort
	inode   string
}

// Listeners implements Machine.
func (l *Local) Listeners(ctx context.Context, ports ...uint16) ([]Listener, error) {
	var sockets []socket
	for _, name := range []string{"tcp", "tcp6"} {
		// Process 1's network is the machine's.
		data, err := os.ReadFile(l.path("proc/1/net", name))
		if err != nil {
			data, err = os.ReadFile(l.path("proc/net", name))
		}
		if errors.Is(err, fs.ErrNotExist) && name == "tcp6" {
			continue // a kernel without IPv6
		}
		if err != nil {
			return nil, fmt.Errorf("look who listens: %w", err)
		}
		found, err := listening(string(data), ports)
		if err != nil {
			return nil, fmt.Errorf("look who listens: proc/net/%s: %w", name, err)
		}
		sockets = append(sockets, found...)
	}
	if len(sockets) == 0 {
		return nil, nil
	}
	processes, err := l.Processes(ctx)
	if err != nil {
		return nil, fmt.Errorf("look who listens: %w", err)
	}
	owners := map[string]Process{}
	for _, p := range processes {
		l.ownSockets(p, sockets, owners)
	}
	out := make([]Listener, len(sockets))
	for i, s := range sockets {
		out[i] = Listener{Address: s.address, Process: owners[s.inode]}
	}
	return out, nil
}

// ownSockets notes which of the sockets a process holds open.
func (l *Local) ownSockets(p Process, sockets []socket, owners map[string]Process) {
	folder := l.path("proc", strconv.Itoa(p.PID), "fd")
	entries, err := os.ReadDir(folder)
	if err != nil {
		return // it has ended, or is another user's
	}
	for _, e := range entries {
		target, err := os.Readlink(folder + "/" + e.Name())
		if err != nil {
			continue
		}
		inode, ok := strings.CutPrefix(target, "socket:[")
		inode = strings.TrimSuffix(inode, "]")
		if _, known := owners[inode]; !ok || known {
			continue
		}
		if slices.ContainsFunc(sockets, func(s socket) bool { return s.inode == inode }) {
			owners[inode] = p
		}
	}
}

// listening reads /proc/net/tcp or tcp6 (proc_net(5)).
func listening(table string, ports []uint16) ([]socket, error) {
	const local, state, inode = 1, 3, 9
	const listen = "0A"
	var out []socket
	for i, line := range slices.Collect(strings.Lines(table)) {
		fields := strings.Fields(line)
		if i == 0 || len(fields) == 0 {
			continue // the heading
		}
		if len(fields) <= inode {
			return nil, fmt.Errorf("line %d has only %d fields", i+1, len(fields))
		}
		if fields[state] != listen {
			continue
		}
		address, err := kernelAddress(fields[local])
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", i+1, err)
		}
		if slices.Contains(ports, address.Port()) {
			out = append(out, socket{address: address, inode: fields[inode]})
		}
	}
	return out, nil
}

// kernelAddress reads an address and port as the kernel prints them: 32-bit
// words in the machine's own order of bytes, and the port, in hexadecimal.
func kernelAddress(text string) (netip.AddrPort, error) {
	host, port, _ := strings.Cut(text, ":")
	raw, err1 := hex.DecodeString(host)
	number, err2 := strconv.ParseUint(port, 16, 16)
	if err1 != nil || err2 != nil || len(raw) != 4 && len(raw) != 16 {
		return netip.AddrPort{}, fmt.Errorf("%q is no address", text)
	}
	for i := 0; i < len(raw); i += 4 {
		binary.NativeEndian.PutUint32(raw[i:], binary.BigEndian.Uint32(raw[i:]))
	}
	address, _ := netip.AddrFromSlice(raw)
	return netip.AddrPortFrom(address.Unmap(), uint16(number)), nil
}

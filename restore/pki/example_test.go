package pki_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"

	"lifeboat/restore/pki"
)

// A master comes back as cp9 at another address.
func ExamplePrepare() {
	ctx := context.Background()
	plan, err := pki.Prepare(ctx, pki.Options{
		Root: "/", Aside: "/var/lib/lifeboat/aside/2026-11-21",
		Rename:       map[string]string{"cp1": "cp9"},
		Address:      map[netip.Addr]netip.Addr{netip.MustParseAddr("10.0.0.11"): netip.MustParseAddr("10.0.0.99")},
		RenewExpired: true,
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	defer plan.Close()
	if err := plan.Print(os.Stdout); err != nil {
		return
	}
	if _, err := plan.Apply(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}

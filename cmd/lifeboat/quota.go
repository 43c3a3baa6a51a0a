package main

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
)

// quotaFlag is --quota.
type quotaFlag struct {
	text  string
	bytes *int64 // nil: not given
}

func (f *quotaFlag) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.text, "quota", "", "refuse a database above this size, etcd's --quota-backend-bytes: such as 8GiB or 2147483648; 0: any (default: 2GiB, or 8GiB if the full alone is larger)")
	check(cmd, func() error {
		if !cmd.Flags().Changed("quota") {
			return nil
		}
		n, err := parseBytes(f.text)
		if err != nil {
			return fmt.Errorf("%w: --quota %q: %w", errUsage, f.text, err)
		}
		f.bytes = &n
		return nil
	})
}

// parseBytes reads a size: a number of bytes, or one with a unit: KiB, MiB, GiB,
// TiB of 1024, or kB, MB, GB, TB of 1000.
func parseBytes(text string) (int64, error) {
	text = strings.TrimSpace(text)
	number := strings.TrimRight(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ")
	unit := strings.ToLower(strings.TrimSpace(text[len(number):]))
	factor := 1.0
	switch unit {
	case "", "b":
	default:
		base := 1000.0
		short, binary := strings.CutSuffix(unit, "ib")
		if binary {
			base = 1024
		} else if short, binary = strings.CutSuffix(unit, "b"); !binary {
			return 0, fmt.Errorf("%q is no unit: use KiB, MiB, GiB or kB, MB, GB", unit)
		}
		exponent := strings.Index("kmgt", short)
		if len(short) != 1 || exponent < 0 {
			return 0, fmt.Errorf("%q is no unit: use KiB, MiB, GiB or kB, MB, GB", unit)
		}
		factor = math.Pow(base, float64(exponent+1))
	}
	if whole, err := strconv.ParseInt(number, 10, 64); err == nil && factor == 1 && whole >= 0 {
		return whole, nil
	}
	value, err := strconv.ParseFloat(number, 64)
	if err != nil || math.IsNaN(value) || value < 0 || factor == 1 && value != math.Trunc(value) {
		return 0, errors.New("want a number of bytes, with a unit if you like: 8GiB")
	}
	if value*factor >= math.MaxInt64 {
		return 0, errors.New("that is more than any disk holds")
	}
	return int64(value * factor), nil
}

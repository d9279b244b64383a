package main

import "net/netip"

// without gives the prefixes that together cover a block less its exceptions. What is not IPv4 is
// left out.
func without(block string, except []string) []netip.Prefix {
	whole, err := netip.ParsePrefix(block)
	if err != nil || !whole.Addr().Is4() {
		return nil
	}
	rest := []netip.Prefix{whole.Masked()}
	for _, text := range except {
		hole, err := netip.ParsePrefix(text)
		if err != nil || !hole.Addr().Is4() {
			continue
		}
		var next []netip.Prefix
		for _, prefix := range rest {
			next = append(next, cut(prefix, hole.Masked())...)
		}
		rest = next
	}
	return rest
}

// cut halves a prefix until the hole is a half of its own, which it leaves out.
func cut(prefix, hole netip.Prefix) []netip.Prefix {
	if !prefix.Overlaps(hole) {
		return []netip.Prefix{prefix}
	}
	if hole.Bits() <= prefix.Bits() {
		return nil
	}
	bits := prefix.Bits()
	upper := prefix.Addr().As4()
	upper[bits/8] |= 0x80 >> (bits % 8)
	low := netip.PrefixFrom(prefix.Addr(), bits+1)
	high := netip.PrefixFrom(netip.AddrFrom4(upper), bits+1)
	return append(cut(low, hole), cut(high, hole)...)
}

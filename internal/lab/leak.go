package lab

import (
	"context"
	"fmt"
	"regexp"
	"sort"
	"strings"
)

// Snapshot is what a machine holds on to: compare one from before a test with
// one from behind it, and what was added has leaked.
type Snapshot struct {
	Xenstore map[string]string // node -> permissions and value, without the volatile ones
	Domains  []string          // "id name" of every domain, dying ones too
	Events   []string          // dom0's event channels, without their port numbers
	Grants   []string          // grants in use, of every domain
}

// volatileNodes change by themselves or count something.
var volatileNodes = regexp.MustCompile(`^/(tool/xenstored/|local/domain/0/memory/|local/domain$|vm$|libxl$)`)

// Snapshot looks at the machine now.
func (m *Machine) Snapshot(ctx context.Context) (Snapshot, error) {
	m.dmesg.Lock()
	defer m.dmesg.Unlock()
	out, err := m.dom0.Shell(ctx, `
		xenstore-ls -fp || exit 1
		echo "=== domains"
		xl list || exit 1
		echo "=== events"
		lsevtchn 0 || exit 1
		echo "=== grants"
		xl dmesg -c >/dev/null && xl debug-keys g && xl dmesg -c`)
	if err != nil {
		return Snapshot{}, fmt.Errorf("take snapshot: %w", err)
	}
	return parseSnapshot(out)
}

// parseSnapshot reads the output of the four listings.
func parseSnapshot(out string) (Snapshot, error) {
	parts := regexp.MustCompile(`(?m)^=== \w+\n`).Split(out, -1)
	if len(parts) != 4 {
		return Snapshot{}, fmt.Errorf("parse snapshot: %d parts of 4", len(parts))
	}
	return Snapshot{
		Xenstore: parseXenstore(parts[0]),
		Domains:  parseDomains(parts[1]),
		Events:   parseEvents(parts[2]),
		Grants:   parseGrants(parts[3]),
	}, nil
}

// parseXenstore reads lines like
//
//	/local/domain/0/name = "Domain-0"   (n0,r0)
func parseXenstore(text string) map[string]string {
	nodes := map[string]string{}
	for _, line := range strings.Split(text, "\n") {
		path, rest, ok := strings.Cut(line, " = ")
		if !ok || volatileNodes.MatchString(path) {
			continue
		}
		nodes[path] = strings.Join(strings.Fields(rest), " ")
	}
	return nodes
}

// parseDomains reads the table of xl list, where a domain that is gone but
// for its memory is called (null).
func parseDomains(text string) []string {
	var domains []string
	for i, line := range strings.Split(text, "\n") {
		fields := strings.Fields(line)
		if i == 0 || len(fields) < 6 {
			continue
		}
		entry := fields[1] + " " + fields[0]
		if state := fields[len(fields)-2]; strings.Contains(state, "d") {
			entry += " dying"
		}
		domains = append(domains, entry)
	}
	sort.Strings(domains)
	return domains
}

// eventPort is what differs between two channels of the same kind.
var eventPort = regexp.MustCompile(`^\s*\d+:\s*`)

// parseEvents reads lines like
//
//	28: VCPU 0: Interdomain (Connected) - Remote Domain 3, Port 12
func parseEvents(text string) []string {
	var events []string
	for _, line := range strings.Split(text, "\n") {
		if !eventPort.MatchString(line) {
			continue
		}
		events = append(events, eventPort.ReplaceAllString(line, ""))
	}
	sort.Strings(events)
	return events
}

var (
	grantDomain = regexp.MustCompile(`d(\d+) \(v`)
	grantEntry  = regexp.MustCompile(`\[0x([0-9a-f]+)\]`)
)

// parseGrants reads what the debug key g prints: for each domain a header
// with its id, then a line for each of its grants that somebody maps.
func parseGrants(text string) []string {
	var grants []string
	domain := "?"
	for _, line := range strings.Split(text, "\n") {
		line = strings.TrimPrefix(line, "(XEN) ")
		if m := grantDomain.FindStringSubmatch(line); m != nil {
			domain = m[1]
			continue
		}
		if grantEntry.MatchString(line) {
			grants = append(grants, "d"+domain+" "+strings.Join(strings.Fields(line), " "))
		}
	}
	return grants
}

// maxSnapshots bounds how often LeaksSince looks again. A destroyed domain
// frees its memory in the background for some hundred milliseconds; one look
// takes about as long.
const maxSnapshots = 10

// LeaksSince takes snapshots until one holds nothing that before did not, and
// returns what the last one still holds.
func (m *Machine) LeaksSince(ctx context.Context, before Snapshot) (leaks []string, err error) {
	for range maxSnapshots {
		after, err := m.Snapshot(ctx)
		if err != nil {
			return leaks, err
		}
		if leaks = Leaks(before, after); len(leaks) == 0 {
			return nil, nil
		}
	}
	return leaks, nil
}

// Leaks returns what is in after and not in before, one line each; empty is
// good. What only after lacks is no leak.
func Leaks(before, after Snapshot) []string {
	var leaks []string
	for _, path := range sortedKeys(after.Xenstore) {
		if _, ok := before.Xenstore[path]; !ok {
			leaks = append(leaks, "xenstore: "+path+" = "+after.Xenstore[path])
		}
	}
	leaks = append(leaks, added("domain", before.Domains, after.Domains)...)
	leaks = append(leaks, added("event channel", before.Events, after.Events)...)
	return append(leaks, added("grant", before.Grants, after.Grants)...)
}

// added counts: two equal lines where there was one are a leak.
func added(kind string, before, after []string) []string {
	had := map[string]int{}
	for _, s := range before {
		had[s]++
	}
	var leaks []string
	for _, s := range after {
		if had[s]--; had[s] < 0 {
			leaks = append(leaks, kind+": "+s)
		}
	}
	return leaks
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	sort.Strings(keys)
	return keys
}

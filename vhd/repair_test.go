package vhd

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
)

// repairCase is an image, and what Repair makes of it.
type repairCase struct {
	name   string
	image  []byte
	force  bool
	mended []string // codes
	left   []string // codes of what is more than a note
	lost   []Range
}

func repairCases() []repairCase {
	h := aDynamic()
	good := h.bytes()
	n := len(good)
	sector := func(i int) uint32 { return uint32(h.blockAt(i) / 512) }
	zeros := func(n int) []byte { return make([]byte, n) }
	block := func(i int64) []Range { return []Range{{i * handBlock, handBlock}} }
	badSums := slices.Clone(good)
	badSums[100]++
	badSums[n-1]++
	orphan := slices.Concat(good[:n-512], good[h.blockAt(1):n-512], good[n-512:])
	hole := h
	hole.blocks = []int{0, 9, 5, 2}
	between := withEntry(hole, 9, 1<<32-1)
	mid := withEntry(h, 2, sector(2)+1)
	return []repairCase{
		{name: "sound", image: good},
		{name: "sound fixed", image: aFixed().bytes()},
		{name: "no footer", image: good[:n-512], mended: []string{"footer-missing"}},
		{name: "footer cut", image: good[:n-100], mended: []string{"footer-missing"}},
		{name: "footer overwritten", image: append(slices.Clone(good[:n-512]), zeros(512)...), mended: []string{"footer-missing"}},
		{name: "no mirror", image: append(zeros(512), good[512:]...), mended: []string{"mirror-bad"}},
		{name: "another mirror", image: edited(h, func(b []byte) { b[200] = 1; resum(b[:512], 64) }), mended: []string{"mirror-differs"}},
		{name: "footer of 511 bytes", image: good[:n-1], mended: []string{"footer-511"}},
		{name: "fixed, footer of 511 bytes", image: aFixed().bytes()[:1<<20+511], mended: []string{"footer-511"}},
		{name: "both sums, forced", image: badSums, force: true, mended: []string{"footer-checksum", "mirror-bad"}},
		{name: "entry past the end", image: withEntry(h, 9, uint32(n)), mended: []string{"bat-beyond-end"}, lost: block(9)},
		{name: "entry past the end, no footer", image: withEntry(h, 9, uint32(n/512))[:n-512],
			mended: []string{"bat-beyond-end", "footer-missing"}, lost: block(9)},
		{name: "entries in metadata", image: edited(h, func(b []byte) { put32(b, handBATAt+12, 0); put32(b, handBATAt+16, 3) }),
			mended: []string{"bat-in-metadata"}, lost: []Range{{3 * handBlock, 2 * handBlock}}},
		{name: "block over the footer", image: mid, mended: []string{"bat-over-footer"}},
		{name: "duplicate", image: withEntry(h, 9, sector(1)), left: []string{"bat-overlap"}},
		{name: "duplicate, forced", image: withEntry(h, 9, sector(1)), force: true, mended: []string{"bat-overlap"}, lost: block(9)},
		{name: "overlap, forced", image: withEntry(h, 5, sector(1)-1), force: true, mended: []string{"bat-overlap"},
			left: []string{"leak"}, lost: block(5)},
		{name: "cut block", image: good[:n-4096], left: []string{"bat-cut", "footer-missing"}},
		{name: "cut block, forced", image: good[:n-4096], force: true, mended: []string{"bat-cut", "footer-missing"},
			lost: []Range{{3*handBlock - 4096 + 512, 4096 - 512}}},
		{name: "cut block and a bad entry", image: withEntry(h, 9, 0)[:n-4096], mended: []string{"bat-in-metadata"},
			left: []string{"bat-cut", "footer-missing"}, lost: block(9)},
		{name: "slack", image: slices.Concat(good[:n-512], zeros(1<<20), good[n-512:]), mended: []string{"slack"}},
		{name: "orphans at the end", image: orphan, mended: []string{"slack"}},
		{name: "orphan between blocks", image: between, left: []string{"leak"}},
		{name: "all at once", image: edited(h, func(b []byte) {
			put32(b, handBATAt+4*9, 0)
			put32(b, handBATAt+4*10, 1<<32-2)
			b[0] = 0
		}), mended: []string{"bat-beyond-end", "bat-in-metadata", "mirror-bad"}, lost: []Range{{9 * handBlock, 2 * handBlock}}},
	}
}

func batmapRepairs() []repairCase {
	h := hasBatmap()
	h.size, h.blocks = 4<<20, []int{1}
	none := h
	none.batmap = false
	partial := h
	partial.bitmap = 0xF0
	empty := handmade{kind: 3, size: 4 << 20, block: 2 << 20, uuid: 0xB1, creator: "tap\x00", version: 0x00010003}
	sum := edited(h, func(b []byte) { put32(b, h.batmapAt()+24, 1) })
	stale := edited(h, func(b []byte) {
		b[h.batmapAt()+512] = 0xF0
		put32(b, h.batmapAt()+24, onesSum(b[h.batmapAt()+512:][:512]))
	})
	return []repairCase{
		{name: "no batmap, and no room", image: none.bytes()},
		{name: "no batmap, and room", image: empty.bytes(), mended: []string{"batmap"}},
		{name: "batmap's sum", image: sum, mended: []string{"batmap"}},
		{name: "batmap with blocks that are not there", image: stale, mended: []string{"batmap-stale"}},
		{name: "batmap with blocks that are not complete", image: partial.bytes(), mended: []string{"batmap-wrong"}},
	}
}

// repairIn runs Repair on an image in memory.
func repairIn(t *testing.T, image []byte, force bool) (after []byte, r *Report, ops []op) {
	t.Helper()
	f, o, log := recordOps(image)
	r, err := Repair(context.Background(), "x.vhd", RepairOptions{Force: force, Open: o})
	if err != nil {
		t.Fatal(err)
	}
	return f.content(), r, *log
}

func worseThanNotes(problems []Problem) (worse []Problem) {
	for _, p := range problems {
		if p.Severity > Note {
			worse = append(worse, p)
		}
	}
	return worse
}

func TestRepair(t *testing.T) {
	for _, c := range slices.Concat(repairCases(), batmapRepairs()) {
		t.Run(c.name, func(t *testing.T) {
			after, r, ops := repairIn(t, c.image, c.force)
			if got := codesOf(r.Mended); !slices.Equal(got, c.mended) {
				t.Errorf("mended %+v, want %q", r.Mended, c.mended)
			}
			if got := codesOf(worseThanNotes(r.Problems)); !slices.Equal(got, c.left) {
				t.Errorf("left %+v, want %q", r.Problems, c.left)
			}
			if !slices.Equal(r.Lost, c.lost) || r.Clean() != (c.left == nil) {
				t.Errorf("lost %v, want %v; clean %v", r.Lost, c.lost, r.Clean())
			}
			if c.mended == nil && len(ops) != 0 {
				t.Errorf("nothing to mend, and did %v", ops)
			}
			if !c.force && !slices.Equal(handRead(t, c.image), handRead(t, after)) {
				t.Error("the disk reads otherwise than before")
			}
			again, r2, ops := repairIn(t, after, c.force)
			if len(ops) != 0 || len(r2.Mended) != 0 || !slices.Equal(again, after) {
				t.Errorf("again: did %v, mended %+v", ops, r2.Mended)
			}
		})
	}
}

// TestRepairKeepsDisk: what a forced repair does not name as lost, and what it
// could read, is as it was.
func TestRepairKeepsDisk(t *testing.T) {
	for _, c := range repairCases() {
		t.Run(c.name, func(t *testing.T) {
			before := handRead(t, c.image)
			after, r, _ := repairIn(t, c.image, true)
			got := handRead(t, after)
			for _, l := range r.Lost {
				clear(before[l.Offset : l.Offset+l.Length])
				clear(got[l.Offset : l.Offset+l.Length])
			}
			if !slices.Equal(got, before) {
				t.Error("the disk reads otherwise than before")
			}
			if r.Corrupt() {
				t.Errorf("left %+v", r.Problems)
			}
		})
	}
}

// TestRepairSurvivesCrashes: whatever a crash leaves of a repair is no worse
// than what was there before, reads the same, and can be repaired.
func TestRepairSurvivesCrashes(t *testing.T) {
	states := 0
	for _, c := range slices.Concat(repairCases(), batmapRepairs()) {
		t.Run(c.name, func(t *testing.T) {
			want, r, ops := repairIn(t, c.image, c.force)
			everyCrash(c.image, ops, func(image []byte, synced, subset int) {
				states++
				if !c.force {
					if err := noWorse(t, c.image, image); err != nil {
						t.Errorf("crash after %d of %d, %b of the rest: %v", synced, len(ops), subset, err)
					}
				}
				got, again, _ := repairIn(t, image, c.force)
				if again.Corrupt() != r.Corrupt() || !slices.Equal(handRead(t, got), handRead(t, want)) {
					t.Errorf("crash after %d of %d, %b of the rest: repaired to %+v", synced, len(ops), subset, again)
				}
			})
		})
	}
	t.Logf("%d states", states)
}

// noWorse compares an image with what it was before.
func noWorse(t *testing.T, before, after []byte) error {
	was, err := checkIn(before)
	if err != nil {
		return err
	}
	is, err := checkIn(after)
	if err != nil {
		return err
	}
	if is.worst() > was.worst() {
		return errors.New("is " + is.worst().String() + ", was " + was.worst().String())
	}
	if !slices.Equal(handRead(t, before), handRead(t, after)) {
		return errors.New("reads otherwise")
	}
	return nil
}

func checkIn(image []byte) (*Report, error) {
	_, o, _ := recordOps(image)
	return Check(context.Background(), "x.vhd", CheckOptions{Open: o})
}

// TestRepairNeedsItsBarriers: the test above finds a repair without a barrier,
// or in another order.
func TestRepairNeedsItsBarriers(t *testing.T) {
	cases := []struct {
		image string // of repairCases
		spoil func(ops []op) []op
	}{
		{"slack", func(ops []op) []op { return slices.DeleteFunc(ops, func(o op) bool { return o.kind == opSync }) }},
		{"slack", func(ops []op) []op { slices.Reverse(ops); return ops }},
	}
	for _, c := range cases {
		all := repairCases()
		i := slices.IndexFunc(all, func(r repairCase) bool { return r.name == c.image })
		_, _, ops := repairIn(t, all[i].image, false)
		caught := false
		everyCrash(all[i].image, c.spoil(ops), func(image []byte, _, _ int) {
			caught = caught || noWorse(t, all[i].image, image) != nil
		})
		if !caught {
			t.Errorf("%s: nothing noticed", c.image)
		}
	}
}

func TestRepairRefuses(t *testing.T) {
	good := aDynamic().bytes()
	badSums := slices.Clone(good)
	badSums[100]++
	badSums[len(good)-1]++
	cases := []struct {
		name  string
		image []byte
		force bool
		want  error
		text  string
	}{
		{"no VHD", make([]byte, 1<<20), true, ErrNotVHD, "footer"},
		{"both sums", badSums, false, ErrCorrupt, "checksum"},
		{"both cookies, forced", edited(aDynamic(), func(b []byte) { b[0], b[len(b)-512] = 0, 0 }), true, ErrNotVHD, "cookie"},
		{"poisoned", withFooter(aDynamic(), func(f []byte) { copy(f, "v_poison") }), true, ErrUnsupported, "journal"},
		{"header", withHeader(aDynamic(), func(h []byte) { h[0] = 0 }), true, ErrCorrupt, "header"},
		{"type", withFooter(aDynamic(), func(f []byte) { f[63] = 9 }), true, ErrUnsupported, "type"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			f, o, ops := recordOps(c.image)
			_, err := Repair(context.Background(), "x.vhd", RepairOptions{Force: c.force, Open: o})
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("got %v, want %v with %q", err, c.want, c.text)
			}
			if len(*ops) != 0 || !f.closed || !slices.Equal(f.data, c.image) {
				t.Errorf("did %v; closed %v", *ops, f.closed)
			}
		})
	}
}

func TestRepairStops(t *testing.T) {
	f, o, ops := recordOps(withEntry(aDynamic(), 9, 0))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Repair(ctx, "x.vhd", RepairOptions{Open: o}); !errors.Is(err, context.Canceled) || len(*ops) != 0 || !f.closed {
		t.Errorf("got %v after %v", err, *ops)
	}
}

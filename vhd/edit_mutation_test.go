package vhd

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"testing"
)

// edit is a tool at work on files, and what must be true after a crash.
type edit struct {
	name   string
	luck   *luck
	before map[string][]byte
	run    func(*shelf) error
	check  func(leftover) error
}

func edits(t *testing.T, r *rand.Rand) (all []edit) {
	t.Helper()
	qemu, windows := layouts()[2], layouts()[1]
	for i, c := range resizeCases() {
		if i != 0 && i != 2 && i != 9 && i != 13 {
			continue // there is nothing new in the others
		}
		b, want := c.image(r, qemu)
		grown := resized(want, c.to)
		all = append(all, edit{
			"resize/" + c.name, c.luck(r), map[string][]byte{"a.vhd": b}, c.run,
			func(left leftover) error { return c.checkCrash(left, want, grown) },
		})
	}
	for _, c := range compactCases()[:1] {
		before, want := c.files(t, r, windows)
		all = append(all, edit{
			"compact/" + c.name, &luck{r, 64}, before, c.run,
			func(left leftover) error { return c.checkCrash(left, want) },
		})
	}
	for _, c := range reparentCases()[:1] {
		before := c.files(r)
		want := c.wants(t, before)
		all = append(all, edit{
			"reparent/" + c.name, &luck{r, 64}, before, c.run,
			func(left leftover) error { return c.checkCrash(left, want) },
		})
	}
	return all
}

// sameLuck is the same each time: what the tests of mutants find they always
// find.
func sameLuck() *rand.Rand { return rand.New(rand.NewPCG(1, 0)) }

// survives says whether no crash is found that does harm.
func (e *edit) survives(ops []shelfOp) bool {
	return crashes(e.luck, e.before, ops, 20, e.check) == nil
}

// TestEditsNeedTheirBarriers: a sync that is left out is found by the tests of
// crashes, or they prove nothing. Where it is not, the next one does the work
// of both: then both are left out.
func TestEditsNeedTheirBarriers(t *testing.T) {
	for _, e := range edits(t, sameLuck()) {
		t.Run(e.name, func(t *testing.T) {
			ops, _ := record(t, e.before, e.run)
			for i, o := range ops {
				if o.kind != opSync || i == 0 || e.spare(ops[:i]) {
					continue
				}
				without := slices.Delete(slices.Clone(ops), i, i+1)
				if !e.survives(without) {
					continue
				}
				next := slices.IndexFunc(without[i:], func(o shelfOp) bool { return o.kind == opSync })
				if next < 0 || e.survives(slices.Delete(without, i+next, i+next+1)) {
					t.Errorf("nothing is wrong without the sync that is operation %d of %d", i, len(ops))
				}
			}
		})
	}
}

// spare says that the last operation wrote one of two footers, and that the
// other one says the same. Its sync keeps a footer at the end of the file for
// programs that know no mirror.
func (e *edit) spare(ops []shelfOp) bool {
	last := ops[len(ops)-1]
	if !last.footer() || last.data[63] == byte(TypeFixed) {
		return false
	}
	left := crash(e.before, ops[:len(ops)-1], nil)[last.path]
	return last.off == 0 || bytes.Equal(last.data, left[:footerBytes])
}

func (o *shelfOp) footer() bool {
	return o.kind == opWrite && o.n == footerBytes && string(o.data[:8]) == footerCookie
}

// TestEditsNeedTheirOrder: so is a file that is cut off before its footer is
// where it will be.
func TestEditsNeedTheirOrder(t *testing.T) {
	for _, e := range edits(t, sameLuck()) {
		t.Run(e.name, func(t *testing.T) {
			ops, _ := record(t, e.before, e.run)
			for i, o := range ops {
				if o.kind != opTruncate {
					continue
				}
				swapped := slices.Clone(ops)
				footer := i - 1
				for !swapped[footer].footer() {
					footer--
				}
				swapped[footer], swapped[i] = swapped[i], swapped[footer]
				if e.survives(swapped) {
					t.Errorf("nothing is wrong with operation %d before %d", i, footer)
				}
			}
		})
	}
}

//go:build race

package nbd

// raceDetector: sync.Pool then loses a quarter of what it is given, on purpose.
const raceDetector = true

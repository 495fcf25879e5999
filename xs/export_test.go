package xs

// What the external tests see of the inside: bounds, so that they are not
// written down twice, and how many requests wait.
const (
	TransactionTries  = transactionTries
	DirectoryRestarts = directoryRestarts
	PumpBytesMax      = pumpTurns * readSize
)

// Calls is the number of requests that wait for replies.
func (c *Conn) Calls() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.calls)
}

package nbd

// The numbers of the protocol, under its names without the prefix NBD.

// Magic numbers.
const (
	magicServer     = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption     = 0x49484156454F5054 // "IHAVEOPT"
	magicOptReply   = 0x3e889045565a9
	magicRequest    = 0x25609513
	magicSimple     = 0x67446698
	magicStructured = 0x668e33ef
)

// Handshake flags; the client's have the same bits.
const (
	flagFixedNewstyle = 1 << 0
	flagNoZeroes      = 1 << 1
)

// Options.
const (
	optExportName      = 1
	optAbort           = 2
	optList            = 3
	optInfo            = 6
	optGo              = 7
	optStructuredReply = 8
	optListMetaContext = 9
	optSetMetaContext  = 10
)

// Replies to options.
const (
	repAck         = 1
	repServer      = 2
	repInfo        = 3
	repMetaContext = 4
	repErrUnsup    = 1<<31 + 1
	repErrInvalid  = 1<<31 + 3
	repErrUnknown  = 1<<31 + 6
	repErrTooBig   = 1<<31 + 9
)

// What repInfo tells.
const (
	infoExport    = 0
	infoBlockSize = 3
)

// Transmission flags: what an export can do.
const (
	canFlags       = 1 << 0 // always set
	canOnlyRead    = 1 << 1
	canFlush       = 1 << 2
	canFUA         = 1 << 3
	canTrim        = 1 << 5
	canWriteZeroes = 1 << 6
	canDF          = 1 << 7
	canMultiConn   = 1 << 8
)

// Kinds of requests.
const (
	cmdRead        = 0
	cmdWrite       = 1
	cmdDisc        = 2
	cmdFlush       = 3
	cmdTrim        = 4
	cmdWriteZeroes = 6
	cmdBlockStatus = 7
)

// Flags of requests.
const (
	cmdFUA    = 1 << 0 // reply when it is durable
	cmdNoHole = 1 << 1 // write zeroes: keep the space
	cmdDF     = 1 << 2 // read: one chunk
	cmdReqOne = 1 << 3 // block status: one extent
)

// Chunks of structured replies, and their flag.
const (
	chunkOffsetData  = 1
	chunkBlockStatus = 5
	chunkError       = 1<<15 + 1

	chunkDone = 1 << 0
)

// The metadata context that we have, and the bits of its extents.
const (
	contextName = "base:allocation"
	contextID   = 1 // ours to choose

	stateHole = 1 << 0
	stateZero = 1 << 1
)

// errno is an error as the protocol numbers it. 0 is success.
type errno uint32

const (
	errPerm     errno = 1
	errIO       errno = 5
	errInval    errno = 22
	errNoSpace  errno = 28
	errOverflow errno = 75
	errShutdown errno = 108
)

// Sizes of what goes over the wire.
const (
	requestBytes = 28
	simpleBytes  = 16
	chunkBytes   = 20
	extentBytes  = 8
)

// Sizes that we tell the client (NBD_INFO_BLOCK_SIZE).
const (
	// sectorBytes is the smallest block: the unit of disk.Disk.
	sectorBytes = 512
	// preferredBytes is the least that does not make a file read before it
	// writes: the page of the page cache.
	preferredBytes = 4096
	// maxPayloadBytes bounds the data of a read or write. 32 MiB is what every
	// client may use without asking ("Size constraints").
	maxPayloadBytes = 32 << 20
)

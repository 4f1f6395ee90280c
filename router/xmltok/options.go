package xmltok

// The default limits. They stop bombs (depth, attributes, namespaces, elements) long
// before they cost memory, and are far above what clients send.
const (
	DefaultMaxBytes    = 256 << 10 // bytes of one item on the wire; what other servers take from clients
	DefaultMaxDepth    = 32        // open elements
	DefaultMaxAttrs    = 64        // attributes of one element, declarations included
	DefaultMaxDecls    = 32        // namespace declarations of one item
	DefaultMaxElements = 4096      // elements of one item
	DefaultMaxName     = 256       // bytes of an element or attribute name
)

// UnauthenticatedMaxBytes is the largest item to take from a client that has not logged in. RFC 6120
// section 13.12 asks for at least 10,000.
const UnauthenticatedMaxBytes = 10 << 10

// Options are the limits of a decoder. A zero limit means its default. A value
// is shared by many decoders, and is not changed once a decoder has it.
type Options struct {
	MaxBytes    int    // of one top-level item on the wire
	MaxDepth    int    // of elements, the top-level one included
	MaxAttrs    int    // of one element, namespace declarations included
	MaxDecls    int    // namespace declarations of one top-level item
	MaxElements int    // of one top-level item
	MaxName     int    // bytes of an element or attribute name
	Content     string // the stream's content namespace, which becomes jabber:client in items; "" means jabber:client
	Framed      bool   // no stream element: every top-level element is an item, with jabber:client in scope
}

var defaults = Options{}.WithDefaults()

// WithDefaults returns the options with every zero limit replaced by its default.
// Decoders that are given the result share it; of other options each makes a copy.
func (o Options) WithDefaults() *Options {
	for _, l := range []struct {
		limit *int
		value int
	}{
		{&o.MaxBytes, DefaultMaxBytes}, {&o.MaxDepth, DefaultMaxDepth}, {&o.MaxAttrs, DefaultMaxAttrs},
		{&o.MaxDecls, DefaultMaxDecls}, {&o.MaxElements, DefaultMaxElements}, {&o.MaxName, DefaultMaxName},
	} {
		if *l.limit <= 0 {
			*l.limit = l.value
		}
	}
	if o.Content == "" {
		o.Content = nsClient
	}
	return &o
}

func (o *Options) complete() *Options {
	switch {
	case o == nil:
		return defaults
	case o.MaxBytes > 0 && o.MaxDepth > 0 && o.MaxAttrs > 0 && o.MaxDecls > 0 && o.MaxElements > 0 && o.MaxName > 0 && o.Content != "":
		return o
	}
	return o.WithDefaults()
}

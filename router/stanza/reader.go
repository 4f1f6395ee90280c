package stanza

import (
	"encoding/xml"

	"muster/router/xmltok"
)

// TokenReader gives canonical bytes (a packet's Inner, a Builder's Bytes) as
// the tokens of encoding/xml, for the decoders of mellium.im/xmpp on cold
// paths. jabber:client is the default namespace in scope.
func TokenReader(b []byte) xml.TokenReader {
	return tokenReader{xmltok.NewReader(b, NSClient)}
}

type tokenReader struct{ r *xmltok.Reader }

// Token returns the next token; io.EOF at the end.
func (t tokenReader) Token() (xml.Token, error) {
	tok, err := t.r.Next()
	if err != nil {
		return nil, err
	}
	name := xml.Name{Space: tok.Space, Local: tok.Local}
	switch tok.Kind {
	case xmltok.StartTag:
		attrs := make([]xml.Attr, len(tok.Attrs))
		for i, a := range tok.Attrs {
			attrs[i] = xml.Attr{Name: xml.Name{Space: a.Space, Local: a.Local}, Value: a.Value}
		}
		return xml.StartElement{Name: name, Attr: attrs}, nil
	case xmltok.EndTag:
		return xml.EndElement{Name: name}, nil
	}
	return xml.CharData(tok.Text), nil
}

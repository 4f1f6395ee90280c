package disco

import (
	"crypto/sha1"
	"encoding/base64"
	"sort"
	"strings"

	"muster/router"
	"muster/router/stanza"
)

// capsNode names this software in capabilities (XEP-0115 section 4).
const capsNode = "urn:muster:server"

// capsElement is the stream feature of XEP-0115 section 6.3.
func capsElement(d router.Disco) []byte {
	return stanza.NewBuilder("").Leaf("c", stanza.NSCaps, "hash", "sha-1", "node", capsNode, "ver", capsHash(d)).Bytes()
}

// capsHash is the verification string of XEP-0115 section 5.1. SHA-1 is what
// the protocol fixes; nothing secret depends on it. d is sorted, as
// Registry.Disco returns it.
func capsHash(d router.Disco) string {
	var lines []string
	for _, id := range d.Identities {
		lines = append(lines, id.Category+"/"+id.Type+"//"+id.Name)
	}
	lines = append(lines, d.Features...)
	for _, form := range sortedForms(d.Forms) {
		lines = append(lines, form...)
	}
	sum := sha1.Sum([]byte(strings.Join(append(lines, ""), "<")))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// sortedForms returns each form's part of the string: FORM_TYPE, then the fields by name, each with its sorted values.
func sortedForms(raw [][]byte) [][]string {
	var forms [][]string
	for _, x := range raw {
		el, err := stanza.ParseElement(x)
		if err != nil {
			continue // a form without a type is not part of the hash either
		}
		if form := formLines(el); form != nil {
			forms = append(forms, form)
		}
	}
	sort.Slice(forms, func(i, j int) bool { return forms[i][0] < forms[j][0] })
	return forms
}

func formLines(form *stanza.Element) []string {
	var kind string
	var fields [][]string
	for _, field := range form.All(stanza.NSData, "field") {
		var values []string
		for _, v := range field.All(stanza.NSData, "value") {
			values = append(values, v.Text())
		}
		sort.Strings(values)
		if name := field.Attr("var"); name != "FORM_TYPE" {
			fields = append(fields, append([]string{name}, values...))
		} else if len(values) > 0 {
			kind = values[0]
		}
	}
	if kind == "" {
		return nil
	}
	sort.Slice(fields, func(i, j int) bool { return fields[i][0] < fields[j][0] })
	lines := []string{kind}
	for _, f := range fields {
		lines = append(lines, f...)
	}
	return lines
}

package commands

import (
	"muster/internal/fault"
	"muster/internal/jid"
	"muster/router/stanza"
)

// Field types of XEP-0004 section 3.3.
const (
	jidSingle   = "jid-single"
	jidMulti    = "jid-multi"
	textSingle  = "text-single"
	textMulti   = "text-multi"
	textPrivate = "text-private"
	listSingle  = "list-single"
)

// field is a question of a form.
type field struct {
	name, kind, label string
	required          bool
	options           []string // of a list; the first is the default
}

// resultField is an answer of a command.
type resultField struct {
	name, kind, label string
	values            []string
}

// values are a submitted form, by field.
type values map[string][]string

// maxLines bounds the values of one field that are looked at.
const maxLines = 1000

// one returns a field's only or first value.
func (v values) one(name string) string {
	if list := v[name]; len(list) > 0 {
		return list[0]
	}
	return ""
}

// account returns a field's value as the bare address of an account.
func (v values) account(name string) (jid.JID, error) {
	list, err := v.addresses(name)
	if err != nil {
		return jid.JID{}, err
	}
	return list[0].Bare(), nil
}

// addresses returns a field's values as addresses; at least one.
func (v values) addresses(name string) ([]jid.JID, error) {
	var out []jid.JID
	for _, s := range v[name] {
		j, err := jid.Parse(s)
		if err != nil || j.Local == "" {
			return nil, fault.New(fault.BadRequest, "command.form", name, "not the address of an account: "+s)
		}
		out = append(out, j)
	}
	if len(out) == 0 {
		return nil, fault.New(fault.BadRequest, "command.form", name, "the form's field "+name+" is empty")
	}
	return out, nil
}

// question renders the form of a command.
func question(cmd *command) []byte {
	b := stanza.NewBuilder(stanza.NSCommands).Open("x", stanza.NSData, "type", "form")
	b.TextElement("title", "", cmd.name).TextElement("instructions", "", cmd.ask)
	formType(b)
	for _, f := range cmd.form {
		b.Open("field", "", "var", f.name, "type", f.kind, "label", f.label)
		if len(f.options) > 0 {
			b.TextElement("value", "", f.options[0])
		}
		if f.required {
			b.Leaf("required", "")
		}
		for _, o := range f.options {
			b.Open("option", "", "label", o).TextElement("value", "", o).Close()
		}
		b.Close()
	}
	return b.Bytes()
}

// answer renders a command's result; extra goes into the form, behind the fields.
func answer(cmd *command, fields []resultField, extra []byte) []byte {
	b := stanza.NewBuilder(stanza.NSCommands).Open("x", stanza.NSData, "type", "result")
	b.TextElement("title", "", cmd.name)
	formType(b)
	for _, f := range fields {
		b.Open("field", "", "var", f.name, "type", f.kind, "label", f.label)
		for _, v := range f.values {
			b.TextElement("value", "", v)
		}
		b.Close()
	}
	return b.Raw(extra).Bytes()
}

func formType(b *stanza.Builder) {
	b.Open("field", "", "var", "FORM_TYPE", "type", "hidden").TextElement("value", "", stanza.NSAdmin).Close()
}

// submitted reads the form inside a command; a missing one is nil.
func submitted(el *stanza.Element) values {
	x := el.Find(stanza.NSData, "x")
	if x == nil || x.Attr("type") != "submit" {
		return nil
	}
	v := values{}
	for _, f := range x.All(stanza.NSData, "field") {
		for _, value := range f.All(stanza.NSData, "value") {
			if name := f.Attr("var"); len(v[name]) < maxLines {
				v[name] = append(v[name], value.Text())
			}
		}
	}
	return v
}

// check holds a submitted form to what the command asks for.
func (cmd *command) check(v values) error {
	if v == nil {
		return fault.New(fault.BadRequest, "command.form", cmd.node, "fill in the form and submit it")
	}
	if t := v.one("FORM_TYPE"); t != "" && t != stanza.NSAdmin {
		return fault.New(fault.BadRequest, "command.form", cmd.node, "this is another form")
	}
	for _, f := range cmd.form {
		if f.required && v.one(f.name) == "" {
			return fault.New(fault.BadRequest, "command.form", cmd.node, "the form's field "+f.name+" is empty")
		}
	}
	return nil
}

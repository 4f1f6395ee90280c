package disco

import (
	"fmt"
	"net/url"
	"strings"

	"muster/fsm/config"
	"muster/router/stanza"
)

// purposes are the contact addresses of XEP-0157 section 2, each with its setting.
var purposes = []struct {
	field   string
	setting *config.StringSetting
}{
	{"abuse-addresses", contact("abuse", "for reports of abuse")},
	{"admin-addresses", contact("admin", "of the administrators")},
	{"feedback-addresses", contact("feedback", "for feedback")},
	{"sales-addresses", contact("sales", "of the sales department")},
	{"security-addresses", contact("security", "for reports of vulnerabilities")},
	{"status-addresses", contact("status", "of the page that shows the service's state")},
	{"support-addresses", contact("support", "of the help desk")},
}

func contact(name, what string) *config.StringSetting {
	return config.String("contact."+name, "", checkAddresses, config.Cluster,
		"Contact addresses "+what+": URIs (mailto:, xmpp:, https:, tel:) separated by spaces. Shown to every client.")
}

// checkAddresses holds a setting to a list of absolute URIs.
func checkAddresses(list string) error {
	for _, s := range strings.Fields(list) {
		if u, err := url.Parse(s); err != nil || !u.IsAbs() {
			return fmt.Errorf("%q is not a URI; write mailto:help@example.com or https://example.com/help", s)
		}
	}
	return nil
}

// contactForm renders the addresses that are set as a form of XEP-0128; nil if there are none.
func contactForm(live *config.Live) []byte {
	b := stanza.NewBuilder("").Open("x", stanza.NSData, "type", "result")
	b.Open("field", "", "var", "FORM_TYPE", "type", "hidden").TextElement("value", "", stanza.NSServerInfo).Close()
	found := false
	for _, p := range purposes {
		addresses := strings.Fields(live.String(p.setting))
		if len(addresses) == 0 {
			continue
		}
		found = true
		b.Open("field", "", "var", p.field, "type", "list-multi")
		for _, a := range addresses {
			b.TextElement("value", "", a)
		}
		b.Close()
	}
	if !found {
		return nil
	}
	return b.Bytes()
}

package main

import (
	"muster/feature/account"
	"muster/feature/archive"
	"muster/feature/blocking"
	"muster/feature/carbons"
	"muster/feature/commands"
	"muster/feature/disco"
	"muster/feature/entitytime"
	"muster/feature/last"
	"muster/feature/message"
	"muster/feature/offline"
	"muster/feature/ping"
	"muster/feature/presence"
	"muster/feature/private"
	"muster/feature/register"
	"muster/feature/roster"
	"muster/feature/vcard"
	softwareversion "muster/feature/version"
	"muster/router"
)

// features lists what the server can do, a line each. Screens run in this order.
func features() []router.Feature {
	admin, waiting := commands.New(), offline.New()
	return []router.Feature{
		blocking.New(), // first: what it refuses, nobody else sees
		account.New(),
		roster.New(),
		presence.New(),
		message.New(archive.Keeps),
		carbons.New(),
		private.New(),
		vcard.New(),
		last.New(),
		ping.New(),
		entitytime.New(),
		softwareversion.New(version),
		register.New(),
		archive.New(),
		waiting,
		admin,
		disco.New(admin).Account(waiting), // last: it shows what the others advertise
	}
}

// Package modules lists the state packages that make up each log's machine, in
// one place for cmd, simulations and tests.
//
// Invariant: every kind of the kind table has its handler in the list of its log.
package modules

import (
	archive "muster/feature/archive/state"
	blocking "muster/feature/blocking/state"
	message "muster/feature/message/state"
	private "muster/feature/private/state"
	roster "muster/feature/roster/state"
	vcard "muster/feature/vcard/state"
	"muster/fsm"
	"muster/fsm/cluster"
	"muster/fsm/config"
	"muster/fsm/token"
	"muster/fsm/user"
)

// Control returns the modules of the control log's machine.
func Control() []fsm.Module {
	return []fsm.Module{
		cluster.Module(),
		config.Module(user.DomainInUse),
		user.ModuleWith(user.Hooks{
			Delete:  []user.Hook{roster.DeleteUser, blocking.DeleteUser, private.DeleteUser, vcard.DeleteUser, token.DeleteUser, archive.DeleteUser},
			Disable: []user.Hook{token.DisableUser},
		}),
		roster.Module(),
		blocking.Module(),
		private.Module(),
		vcard.Module(),
		token.Module(),
		archive.Module(),
	}
}

// Message returns the modules of the message log's machine.
func Message() []fsm.Module { return []fsm.Module{message.Module()} }

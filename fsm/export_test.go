package fsm

import "muster/log"

// SetKeyless makes a machine of a test take a kind for keyless, whatever the kind table says.
func (m *Machine) SetKeyless(k log.Kind) { m.keyless[k] = true }

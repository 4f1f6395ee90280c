// Package feature is the home of what the server does: one folder for each
// feature, its replicated half (if any) in the folder's state package, its
// scenarios in the folder's testdata. This package holds nothing but the runner
// of those scenarios, which plays them against a router with all features.
package feature

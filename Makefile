# Kiln's commands. `make demo` and `make test` need nothing but Debian 12 and Rust.

.DEFAULT_GOAL := help
.PHONY: help demo test test-wine check bench deb

help: ## List these commands
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## Set up this machine, make a base image, build a template into a VHD
	@scripts/demo

test: ## Set up this machine and run every test, real guests included
	@scripts/test all

test-wine: ## Set up the lab on Wine and run its suite alone (KILN_PWSH_WIN; within 10 minutes)
	@scripts/test wine

check: ## Format, lints and the tests that need no guest (the inner loop)
	@scripts/test check

bench: ## Time builds and uploads against packer, the VHD writer, and a server under load
	@scripts/bench
	@scripts/bench-load
	@scripts/bench-upload
	@scripts/bench-vhd

deb: ## Build the Debian package, with the service (target/deb)
	@scripts/setup deb && scripts/deb

# Names for what ./dev does.
.PHONY: help check test test-unit test-vm demo bench
help: ; @./dev help
check: ; ./dev check
test: ; ./dev test
test-unit: ; ./dev test --unit
test-vm: ; ./dev test -m "vm or engine"
demo: ; ./dev demo
bench: ; ./dev bench

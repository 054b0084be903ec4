"""A machine in qemu with traind installed; `make test-vm` names this folder, CI does not."""

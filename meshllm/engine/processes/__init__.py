"""llama-server and rpc-server as supervised child processes."""

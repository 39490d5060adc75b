"""Read and change nodes, pre-auth keys and users of a Headscale server, from release 0.23 on."""

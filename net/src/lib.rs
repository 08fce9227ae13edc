//! The dataplane of one host: addresses, routes, nftables maps, DNS.

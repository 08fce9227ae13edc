//! The embedded container runtime: namespaces, cgroups, overlay, shim, logs, exec.

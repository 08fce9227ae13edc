//! Compose files to model specs: interpolation, merge, conversion, diff.

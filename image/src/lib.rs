//! Images on one host: store, unpack, load, import, build.

//! The store, its server and its agents over loopback.

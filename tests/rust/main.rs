//! Integration tests of the engine, one file per law.

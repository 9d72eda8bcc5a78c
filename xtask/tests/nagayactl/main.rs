//! `nagayactl` as a program, from its command line to its output, against the real server over a mock machine at the other
//! end of a socket.

mod machine;
mod snapshot;
mod terminal;
mod verbs;

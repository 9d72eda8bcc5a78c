//! How the names of artefacts look, for those who meet one and need not make it.

/// What they start with: `debian/` for what comes out of Debian's packages as it is, `built/` for what is put together here.
const PREFIXES: [&str; 2] = ["debian/", "built/"];

/// Whether a scenario's name of an image is that of an artefact, known or not.
pub(crate) fn is_one(name: &str) -> bool {
    PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

//! Links the kernel at 1 MiB, where boot loaders put it, and not to wherever there is room as the target's programs are.

fn main() {
    println!("cargo:rerun-if-changed=link.ld");
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("none") {
        return;
    }
    let folder = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    println!("cargo:rustc-link-arg-bins=-T{folder}/link.ld");
    for argument in ["--no-pie", "-znorelro"] {
        println!("cargo:rustc-link-arg-bins={argument}");
    }
}

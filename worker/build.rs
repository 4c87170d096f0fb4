//! Gives `bam-worker` a run path to libtorch, so that it starts without `LD_LIBRARY_PATH`, and compiles the shim, which needs
//! libtorch's headers.

use std::path::Path;

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    println!("cargo:rerun-if-changed=src/shim/shim.cpp");
    let Ok(lib) = std::env::var("DEP_TCH_LIBTORCH_LIB") else { return };
    println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
    let include = Path::new(&lib).with_file_name("include");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .include(include.join("torch/csrc/api/include"))
        .include(include)
        // Others' headers.
        .warnings(false)
        .file("src/shim/shim.cpp")
        .compile("bam_shim");
}

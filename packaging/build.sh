#!/usr/bin/env bash
# build.sh DIR PROFILE: builds divvy and the guard for MPS (PROFILE: dev or release) and divvy-hook (static, always
# optimised) into DIR.
# The hook is built for musl where that target is installed or can be added: half the size, a quarter of the
# start-up. Otherwise it is linked statically against glibc, which serves as well.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$1
profile=$2
arch=$(uname -m)
musl=$arch-unknown-linux-musl
target=${CARGO_TARGET_DIR:-target}
command -v cargo >/dev/null || { echo "error: cargo is not in PATH" >&2; echo "hint: install Rust 1.89 or newer (rustup, or your distribution's package)" >&2; exit 1; }

has_musl() { [ -d "$(rustc --print target-libdir --target "$musl" 2>/dev/null)" ]; }
if ! has_musl && command -v rustup >/dev/null; then
  echo "adding the Rust target $musl for the hook"
  rustup target add "$musl" >/dev/null 2>&1 || echo "it cannot be added; the hook is linked statically against glibc"
fi

first=
[ -d "$target/${profile/#dev/debug}/deps" ] || first=" (a few minutes the first time)"
echo "building divvy and divvy-hook$first"
cargo build --quiet --locked --profile "$profile" -p divvy -p divvy-mps-guard
if has_musl; then
  cargo build --quiet --locked --profile hook -p divvy-hooks --bin divvy-hook --target "$musl"
  hook=$target/$musl/hook/divvy-hook
else
  cargo rustc --quiet --locked --profile hook -p divvy-hooks --bin divvy-hook --target "$arch-unknown-linux-gnu" -- -C target-feature=+crt-static
  hook=$target/$arch-unknown-linux-gnu/hook/divvy-hook
fi
mkdir -p "$out"
install -m 755 "$target/${profile/#dev/debug}/divvy" "$hook" "$out"/
install -m 644 "$target/${profile/#dev/debug}/libdivvy_mps_guard.so" "$out"/

# What people do with a clone of bam. `make help` lists it.

# Where `make install` copies the programs to.
PREFIX ?= $(HOME)/.local
# Tests start several processes each, so that few at a time are enough. TEST_ARGS go to the test programs
# (make test TEST_ARGS=resume).
TEST_THREADS ?= 2
TEST_ARGS ?=
# What cargo-deny looks at; without advisories it needs no network (make lint DENY_CHECKS="bans licenses sources").
DENY_CHECKS ?= all

# One thread per rank, unless the user wants more: ranks that share a machine's cores get in each other's way.
export OMP_NUM_THREADS ?= 1

# A shell opened before rustup ran does not know its cargo.
CARGO_BIN := $(if $(CARGO_HOME),$(CARGO_HOME),$(HOME)/.cargo)/bin
ifeq (,$(findstring :$(CARGO_BIN):,:$(PATH):))
export PATH := $(CARGO_BIN):$(PATH)
endif

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-gpu bench bench-gpu reliability lint install clean

help: ## say what can be made
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(firstword $(MAKEFILE_LIST)) \
	    | while IFS='|' read -r name text; do printf 'make %-11s  %s\n' "$$name" "$$text"; done

setup: ## get what the build needs, and the demo's files, and build the programs
	@setup/setup.sh packages rust libtorch demo-assets build

demo: setup ## train four tasks on human-rated text with two ranks
	target/release/bam run configs/demo.yaml -n 2

test: ## run all tests, on the programs as released
	@setup/setup.sh all
	cargo test --release --workspace --locked -- --test-threads=$(TEST_THREADS) $(TEST_ARGS)

bench: setup ## measure speed and memory, also against Hugging Face + DDP (some 45 minutes; fetches 2.6 GB)
	@setup/setup.sh python-peer
	cargo bench -p bam-tests --locked

# Needs CUDA's libraries beside libtorch's: a LIBTORCH of the site's own, or a PyTorch that is complete.
test-gpu: setup ## run what needs a GPU: the known answer, NCCL, runs against CPUs (a GPU, CUDA's libraries)
	BAM_TEST_GPU=1 cargo test --release --workspace --locked --test parity --test device --test nccl --test gpu -- --nocapture --test-threads=1

bench-gpu: setup ## measure training on BAM_BENCH_GPUS (1) GPUs against Hugging Face + DDP
	@setup/setup.sh python-peer
	BAM_BENCH_GPUS=$${BAM_BENCH_GPUS:-1} cargo bench -p bam-tests --locked --bench peer

reliability: setup ## kill runs two hundred times, at random and at every point of a commit, and compare (half an hour)
	RELIABILITY_KILLS=200 cargo test --release -p bam-tests --locked --test reliability -- --nocapture

# In the release profile, so that libtorch's bindings are compiled once for this and for the tests.
lint: ## check format, lints, documentation, shell scripts and the dependencies' licences
	@setup/setup.sh packages rust libtorch
	cargo fmt --all --check
	cargo clippy --release --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --release --workspace --no-deps --locked
	@if command -v shellcheck >/dev/null; then \
	    files="$$(grep -slE '^#!.*sh( |$$)' .ci/* setup/* slurm/* slurm/lab/* tests/* tests/*/*)"; \
	    echo shellcheck -x $$files; shellcheck -x $$files; \
	else \
	    echo "shellcheck: skipped, it is not installed (apt-get install shellcheck)"; \
	fi
	@if cargo deny --version >/dev/null 2>&1; then \
	    echo cargo deny check $(DENY_CHECKS); cargo deny check $(DENY_CHECKS); \
	else \
	    echo "cargo deny: skipped, it is not installed (cargo install cargo-deny --locked)"; \
	fi

install: ## copy the programs to PREFIX/bin (~/.local/bin), with manual pages and completions for shells
	@test -x target/release/bam && test -x target/release/bam-worker || { echo "first: make setup" >&2; exit 1; }
	install -d "$(DESTDIR)$(PREFIX)/bin"
	install -m 755 target/release/bam target/release/bam-worker "$(DESTDIR)$(PREFIX)/bin"
	target/release/bam man "$(DESTDIR)$(PREFIX)/share/man/man1"
	share="$(DESTDIR)$(PREFIX)/share"; \
	    install -d "$$share/bash-completion/completions" "$$share/zsh/site-functions" "$$share/fish/vendor_completions.d" \
	    && target/release/bam completions bash > "$$share/bash-completion/completions/bam" \
	    && target/release/bam completions zsh > "$$share/zsh/site-functions/_bam" \
	    && target/release/bam completions fish > "$$share/fish/vendor_completions.d/bam.fish"

clean: ## remove what cargo built; downloads stay in the cache
	cargo clean

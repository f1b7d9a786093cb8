# SUITE_PRELUDE: file sizes as SQLite sees them, and the log by SQLite's name for it.
#
# The log of an encrypted database `X` lies at `X-tdewal`. Where it is there, or one is copied, Tcl's `file` and `open`
# take `X-wal` for it.
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

# Bytes of a super-journal's name at the end of a journal.
proc suite_name_size {name size} {
  set channel [open $name rb]
  seek $channel [expr {$size - 16}]
  set end [read $channel 16]
  close $channel
  if {[string range $end 8 15] ne "\xd9\xd5\x05\xf9\x20\xa1\x63\xd7"} { return 0 }
  binary scan $end I len
  expr {$len > 0 && $len + 16 <= $size - 512 ? $len + 16 : 0}
}

proc suite_logical_size {name size} {
  if {$size < 512} { return $size }
  set channel [open $name rb]
  set header [read $channel 64]
  close $channel
  switch -- [string range $header 0 15] "sqlite-tde file\0" {
    return [expr {$size - 16384}]
  } "\0sqlite-tde jrnl" {
    binary scan $header @56I grain
    return [suite_journal_size [expr {$size - [suite_name_size $name $size]}] $grain]
  } "sqlite-tde wal\0\0" {
    binary scan $header @20II page_size grain
    return [suite_wal_size $size $page_size $grain]
  }
  return $size
}

# What a file is called that SQLite calls `name`.
proc suite_name {name} {
  if {![string match *-wal $name]} { return $name }
  set ours [string range $name 0 end-3]tdewal
  expr {[suite_file exists $ours] && ![suite_file exists $name] ? $ours : $name}
}

if {[info commands suite_open] eq ""} {
  rename open suite_open
  proc open {name args} {
    uplevel 1 [list suite_open [suite_name $name] {*}$args]
  }
}

if {[info commands suite_file] eq ""} {
  rename file suite_file
  proc file {subcommand args} {
    if {$subcommand in {exists size delete copy rename mtime}} {
      set named [lmap name $args { suite_name $name }]
      if {$subcommand in {copy rename} && $named ne $args && [string match *-wal [lindex $args end]]} {
        lset named end [string range [lindex $args end] 0 end-3]tdewal
      }
      set args $named
    }
    set answer [uplevel 1 [list suite_file $subcommand {*}$args]]
    if {$subcommand eq "size"} { return [suite_logical_size [lindex $args 0] $answer] }
    return $answer
  }
}

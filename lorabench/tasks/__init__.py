"""The tasks of the command line (`task=`): the benchmark, and studies and tools that use its parts."""

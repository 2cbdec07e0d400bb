"""Run the tasks of a pack in worker processes.

In: the options and the input files. Out: a complete output folder and a `PackReport`.

    parent process                                worker processes
    +------------------------------+
    | input.reading                |  SplitTask   +------------------------------------+
    | cuts files into sections     | -----------> | split_task: read, render, tokenize |
    |                              |              | writes a document file             |
    |                              | SplitRecord  |                                    |
    | windows                      | <----------- +------------------------------------+
    | collects consecutive splits  |  PlanTask    +------------------------------------+
    |                              | -----------> | plan_task: read lengths, plan      |
    |                              | PlannedWindow| writes a plan file                 |
    | cuts the plan into shards    | <----------- +------------------------------------+
    |                              |  ShardTask   +------------------------------------+
    |                              | -----------> | shard_task: assemble, write        |
    | attempt                      | WrittenShard | reads the plan and document files  |
    | records, syncs, publishes    | <----------- +------------------------------------+
    +------------------------------+

A task is run by a function of (pipeline, task), in any process, and again after a crash.
`run_inputs.py` finds what a run reads, and the source of each file.
`pack.py` is one run from start to end, which may need more than one attempt; `earlier_work.py` is
what a run takes from one that was interrupted; `executors.py` chooses what runs the tasks:
`runner.py` in the processes of a `pool.py`, or `ray_runner.py` on a Ray cluster.
"""

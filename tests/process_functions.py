"""The functions of ``plain_functions``, as ``in_process`` makes them."""

from __future__ import annotations

from taskiq_flow import in_process
from tests import plain_functions as plain

add = in_process(plain.add)
pid = in_process(plain.pid)
one_at_a_time = in_process(limit=1)(plain.one_at_a_time)
hold = in_process(limit=1)(plain.hold)
quick = in_process(limit=1)(plain.quick)
spin = in_process(plain.spin)
hold_the_gil = in_process(plain.hold_the_gil)
keep_the_gil = in_process(plain.keep_the_gil)
leave_a_child = in_process(plain.leave_a_child)
leave_a_child_and_end = in_process(plain.leave_a_child_and_end)
exit_with = in_process(plain.exit_with)
leave = in_process(plain.leave)
kill_itself = in_process(plain.kill_itself)
divide = in_process(plain.divide)
fail_oddly = in_process(plain.fail_oddly)
fail_frozen = in_process(plain.fail_frozen)
fail_locally = in_process(plain.fail_locally)
give = in_process(plain.give)
give_a_lambda = in_process(plain.give_a_lambda)
say = in_process(plain.say)

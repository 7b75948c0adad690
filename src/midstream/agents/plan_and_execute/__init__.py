"""The `plan_and_execute` flow: a planner writes a plan, the durable executor runs it, failures lead to a new plan."""

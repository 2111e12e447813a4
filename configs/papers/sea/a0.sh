#!/bin/sh
# Table A0 from nothing: teachers, then their students. See steps.sh.
exec sh configs/papers/sea/steps.sh a0_start a0_teacher a0 -- "$@"

# make demo       a teacher, a student without and one with attention distillation, compared: 10 minutes on 2 CPU cores
# make test       the test suite
# Each starts from a fresh clone, and picks up where it was when run again. `rm -rf out/demo` starts the demo over.

PY := .venv/bin/python
.PHONY: demo test clean
.DELETE_ON_ERROR:

.venv/installed: requirements.txt
	python3 -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

# Small enough for two cores: 32 px, a small teacher, one G step for each D step, a high learning rate, and the losses
# that teach the attributes and keep the face (cls, rec) weighted up against the adversarial one.
DEMO = out/demo
DEMO_TRAIN = --n_critic=1 --lr=2e-3 --lambda_cls=5 --lambda_rec=70 --dtype=bfloat16 --log_interval=100 \
             --sample_interval=500 --ckpt_interval=500 --resume=True
demo: .venv/installed
	$(PY) data/toyfaces/prepare.py --image_size=32 --balance=1 --n_train=8000 --n_val=200 --n_test=500 --dst=$(DEMO)/data
	$(PY) train_teacher.py --dataset=$(DEMO)/data --attrs=Blond_Hair,Eyeglasses,Mustache,Rosy_Cheeks,Pale_Skin \
	    --conv_dim=24 --n_blocks=2 --d_conv_dim=32 --d_n_layers=4 --max_iters=3400 $(DEMO_TRAIN) --out_dir=$(DEMO)/T
	$(PY) train_student.py --teacher=$(DEMO)/T/ckpt.pt --conv_dim=12 --n_blocks=1 --max_iters=1400 $(DEMO_TRAIN) \
	    --lambda_att=0 --out_dir=$(DEMO)/S-without
	$(PY) train_student.py --teacher=$(DEMO)/T/ckpt.pt --conv_dim=12 --n_blocks=1 --max_iters=1400 $(DEMO_TRAIN) \
	    --lambda_att=10 --out_dir=$(DEMO)/S-with
	$(PY) evaluate.py --ckpt=$(DEMO)/T/ckpt.pt,$(DEMO)/S-without/ckpt.pt,$(DEMO)/S-with/ckpt.pt \
	    --out_dir=$(DEMO)/eval --clf_dir=$(DEMO)/clf --clf_epochs=4

test: .venv/installed
	$(PY) -m pytest -q tests

clean:
	rm -rf out .venv

# make demo       a teacher, a student without and one with attention loss, compared: 10 minutes on 2 CPU cores
# make demo-uag   attention-guided translation of drawn fruit and its two ablations: 10 minutes on 2 CPU cores
# make test       the test suite
# Each starts from a fresh clone, and picks up where it was when run again.
# `rm -rf out/demo out/demo-uag` starts the demos over.

PY := .venv/bin/python
.PHONY: demo demo-uag test clean
.DELETE_ON_ERROR:

.venv/installed: requirements.txt
	python3 -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

# Small enough for two cores: 32 px, a small teacher, one G step for each D step, a high learning rate, and the losses
# that teach the attributes and keep the face (cls, rec) weighted up against the adversarial one. The students share the
# cores, one each: on a CPU the number of threads belongs to what makes a run repeatable.
DEMO = out/demo
DEMO_TRAIN = --n_critic=1 --lr=2e-3 --lambda_cls=5 --lambda_rec=70 --dtype=bfloat16 --log_interval=100 \
             --sample_interval=500 --ckpt_interval=500 --resume=True
DEMO_S = train_student.py --teacher=$(DEMO)/T/ckpt.pt --conv_dim=12 --n_blocks=1 --max_iters=1200 $(DEMO_TRAIN)
demo: .venv/installed
	$(PY) data/toyfaces/prepare.py --image_size=32 --balance=1 --n_train=8000 --n_val=200 --n_test=500 --dst=$(DEMO)/data
	OMP_NUM_THREADS=2 $(PY) train_teacher.py --dataset=$(DEMO)/data --max_iters=3400 $(DEMO_TRAIN) --out_dir=$(DEMO)/T \
	    --attrs=Blond_Hair,Eyeglasses,Mustache,Rosy_Cheeks,Pale_Skin \
	    --conv_dim=24 --n_blocks=2 --d_conv_dim=32 --d_n_layers=4
	export OMP_NUM_THREADS=1; $(PY) $(DEMO_S) --lambda_att=0 --out_dir=$(DEMO)/S-without & a=$$!; \
	    $(PY) $(DEMO_S) --lambda_att=10 --out_dir=$(DEMO)/S-with && wait $$a
	$(PY) evaluate.py --ckpt=$(DEMO)/T/ckpt.pt,$(DEMO)/S-without/ckpt.pt,$(DEMO)/S-with/ckpt.pt \
	    --out_dir=$(DEMO)/eval --clf_dir=$(DEMO)/clf --clf_epochs=4

# 64 px, small nets, batches of 2; an epoch is 500 iterations. The switch comes when the maps have found the fruit.
UAG = out/demo-uag
UAG_TRAIN = $(PY) train_uag.py --dataset=$(UAG)/data --ngf=16 --n_blocks=3 --ndf=32 --naf=16 --d_n_layers=2 \
            --batch_size=2 --lr=1e-3 --n_epochs=3 --n_epochs_decay=1.5 --switch_epoch=1.5 --dtype=bfloat16 \
            --log_interval=100 --sample_interval=500 --ckpt_interval=500 --resume=True
demo-uag: .venv/installed
	$(PY) data/toyfruit/prepare.py --n_train=1000 --n_test=100 --dst=$(UAG)/data
	export OMP_NUM_THREADS=1; $(UAG_TRAIN) --masked_d=False --out_dir=$(UAG)/UAG-D & a=$$!; \
	    $(UAG_TRAIN) --attention=False --out_dir=$(UAG)/CycleGAN & b=$$!; \
	    $(UAG_TRAIN) --out_dir=$(UAG)/UAG && wait $$a && wait $$b
	$(PY) evaluate.py --ckpt=$(UAG)/UAG/ckpt.pt,$(UAG)/UAG-D/ckpt.pt,$(UAG)/CycleGAN/ckpt.pt \
	    --out_dir=$(UAG)/eval --clf_dir=$(UAG)/clf --clf_epochs=3

test: .venv/installed
	$(PY) -m pytest -q tests

clean:
	rm -rf out .venv
